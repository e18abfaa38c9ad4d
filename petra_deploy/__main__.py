"""`python -m petra_deploy` is `petra-deploy`."""

from petra_deploy.cli.main import main

if __name__ == "__main__":
    main()
