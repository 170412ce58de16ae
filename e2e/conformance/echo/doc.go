// Package echo pins the server and the client that the conformance suite's mesh tests run in their pods: Istio's own test
// application. It has no code; the module's tool directives name the programs, of which `cluster images echo-advanced` makes the
// image that the suite's manifests ask for.
package echo
