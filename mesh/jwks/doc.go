// Package jwks reads sets of public keys (RFC 7517) and verifies signed tokens (RFC 7515) by them. The cryptography is go-jose's
// and the standard library's; what is here is which keys and algorithms count. Only public keys do: a set never makes a token
// valid that somebody could have signed who only knows the set.
package jwks
