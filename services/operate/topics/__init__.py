"""Commands that create and check the topics of a deployment."""
