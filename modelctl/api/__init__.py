"""The wire: requests and responses, one module a dialect. The daemon and the client share these structs."""
