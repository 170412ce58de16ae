// Package wire carries TLS over TCP for HTTP/2: reads of many records and writes of many records in one system call each,
// and no buffer while nothing comes. It knows nothing of what it carries. crypto/tls does the handshake; the records of TLS 1.3
// after it are ours, so that payload is sealed and opened on its way from one buffer to the next, and copied nowhere. TLS 1.2,
// FIPS 140-3 mode and servers with session tickets stay with crypto/tls.
package wire
