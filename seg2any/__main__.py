"""`python -m seg2any` is `seg2any`."""

from seg2any.commands.verbs import start

if __name__ == "__main__":
    start()
