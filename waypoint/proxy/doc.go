// Package proxy is the running waypoint: it takes tunnels, finds out what each one's destination is to be served as, and
// carries requests (HTTP) or bytes (TCP) to a backend that the configuration chooses.
//
// Rules of the room: what is in force is read from one immutable snapshot, once for each connection and once for each request.
// Nothing is collected: a body flows as fast as its receiver takes it. A request is sent again only if nobody can have acted on
// it, or its route says so. A refusal says which rule it comes from and what to do. Whatever is begun here is waited for here.
package proxy
