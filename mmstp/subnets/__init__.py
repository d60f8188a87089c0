"""How a subnet runs inside its network, and how it is cut out of it."""
