// Package hbone is the mesh's tunnel: mutual TLS, HTTP/2, and one classic CONNECT stream (RFC 9113 section 8.5) for each
// TCP connection that it carries. Pool is the client's side, Server the server's, Relay the way between a TCP connection
// and a stream.
//
// Rules of the room: it decides nothing. Who may connect to whom, and with which certificate, is the caller's to say.
// Every step has a time-out. A FIN arrives as a FIN and a RST as a RST. What waits holds no buffer.
package hbone
