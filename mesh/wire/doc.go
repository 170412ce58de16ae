// Package wire carries TLS over TCP for HTTP/2: reads of many records and writes of many records in one system call each,
// and no buffer while nothing comes. It knows nothing of what it carries. crypto/tls does the handshake and the records;
// what is beneath Conn can change without its users noticing.
package wire
