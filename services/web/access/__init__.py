"""Access control: API keys, their scopes, and the middleware that checks them."""
