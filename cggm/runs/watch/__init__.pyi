from .journal import Journal as Journal
