package h2

// Stream is one request and its response.
type Stream struct{}
