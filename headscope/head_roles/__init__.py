"""Roles: what each head looks at, such as the previous token or a delimiter. It knows nothing of a head's worth."""
