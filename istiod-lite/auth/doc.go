// Package auth finds out who calls. A caller is a service account that the API server vouches for (a token for the audience
// api.TokenAudience) or that the mesh's own CA has certified. A token must be bound to a pod that still exists: a token that
// outlives its pod, or that never had one, identifies nobody. What a caller says of itself beyond that must agree with it.
package auth
