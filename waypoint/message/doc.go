// Package message is what travels through the L7 proxy: requests and responses as HTTP means them (RFC 9110), whatever
// version carried them. It does no I/O of its own and knows nothing of connections: package codec reads and writes them.
//
// Rules of the room: a header is an ordered list with names in lower case; what concerns one connection only (connection,
// transfer-encoding, upgrade and their like, and pseudo-fields) is never in it; a body is pulled, so that whoever does not
// pull holds the sender back.
package message
