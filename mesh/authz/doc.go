// Package authz reads AuthorizationPolicies as people write them and says what they mean at layer 4, so that the control plane
// and the command line cannot differ about it. It is pure: no client, no clock, no log.
//
// What a policy asks that cannot be decided on a connection (HTTP attributes, tokens) and what is malformed are treated alike,
// and never weaken it: an ALLOW rule that has such a part matches nothing, and a DENY rule loses the part and so denies more.
package authz
