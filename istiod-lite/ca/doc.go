// Package ca certifies workloads. An Authority is a key and what proves it, and signs; a Service decides for whom: a caller
// gets certificates for itself, and a node proxy for the service accounts of pods that run on its node. What a certificate
// says comes from that decision and never from the request, of which only the public key is used. A Keeper follows the secrets
// that hold the key: verifiers hear of a new root before anything is signed under it.
package ca
