// Package identity holds who a workload is and how it proves it: SPIFFE identities, X.509 workload certificates (SVIDs)
// that it requests, checks and renews, and the TLS configurations made from them. It keeps keys in memory only, never
// writes or logs one, and knows neither Kubernetes nor what travels over the connections that it secures.
package identity
