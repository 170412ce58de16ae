// Package extauthz asks somebody outside whether a request may be served, as Envoy's filter ext_authz does: by gRPC
// (envoy.service.auth.v3) or by a request of HTTP. It makes what is asked and reads what is answered; the way there is the caller's.
//
// Rules of the room: an answer that is not understood, or asks for what cannot be done, is an error and never a yes; what to make of
// errors the settings say. What comes from outside is bounded.
package extauthz
