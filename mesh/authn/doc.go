// Package authn reads Istio's RequestAuthentication: which issuers' tokens count, where they are looked for and what becomes of them.
// It is pure, and serves the control plane as well as the command. A rule with a fault never lets more through than it says: tokens
// are looked for where it says, as far as that can be read, and refused.
package authn
