// Package jwt authenticates requests by JSON Web Tokens, as Envoy's jwt_authn filter does: it finds the tokens of a request, verifies
// them for the providers that are configured, and says what they claim. It has no clock and does no I/O: keys come with the
// configuration. A request without a token is none of its business unless a token is required; one with a bad token is refused.
//
// Rules of the room. What is cheap is looked at before a signature is verified, a token that was good is not verified again while it
// is, and what a request can make us do is bounded, by length and number. Fields that tell a backend what a token claims are
// written here only: a client's own are taken out of every request.
package jwt
