"""The HTTP API in the form of OpenAI's, over a client of the swarm (`swarmd api`)."""
