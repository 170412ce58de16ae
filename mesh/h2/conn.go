package h2

// Conn is an HTTP/2 connection.
type Conn struct{}
