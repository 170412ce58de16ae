// Package keysets fetches the keys of issuers that RequestAuthentications name, for all waypoints: as Istio's control plane does, so
// that waypoints need no way to issuers, a request never waits for one, and thousands of proxies do not ask it. The last good keys
// stay when an issuer cannot be reached; where there never were any, tokens are refused and the policy says why. One goroutine owns the
// state, and one for each source fetches.
package keysets
