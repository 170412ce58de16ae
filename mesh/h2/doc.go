// Package h2 is an HTTP/2 connection (RFC 9113) in either role: streams, header blocks, trailers, flow control, limits and
// orderly shutdown. It knows nothing of tunnels, TLS or HTTP semantics beyond what the frames need: hbone runs CONNECT
// over it, an L7 proxy any request.
//
// Rules of the room: one goroutine reads a connection; whoever has something to send writes it, when nobody else is
// writing; no lock is held across I/O; a connection on which nothing happens holds no buffer; what a peer can make us
// remember or do is bounded.
package h2
