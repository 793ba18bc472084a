"""Roles: what each head looks at, such as the previous token, a delimiter, or what followed last time."""
