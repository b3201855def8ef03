"""Users, their passwords and their sessions: who a person is, before ``core/auth.py`` says what they may do.

:mod:`.accounts` holds the use cases (log in, set up, confirm, change); the other modules are its parts. What a
request's head needs (:meth:`.sessions.Sessions.authenticate`) is answered from memory and never blocks.
"""
