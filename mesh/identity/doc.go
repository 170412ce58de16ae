// Package identity holds who a workload is and how it proves it: SPIFFE identities, X.509 workload certificates (SVIDs)
// that it requests, checks and renews, what peers are verified by (roots, names of the trust domain, revocation lists), and the
// TLS configurations made from them. It keeps keys in memory, and in a root-only tmpfs where it is told to, never logs one, and
// knows neither Kubernetes nor what travels over the connections that it secures.
package identity
