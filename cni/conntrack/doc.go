// Package conntrack keeps the kernel's connection tracking of a pod's network namespace in step with the pod's sockets.
// A TCP connection that is tracked before capture begins is left alone by it, because the nat table sees only the first
// packet of a connection; a packet that belongs to no tracked connection is a first packet, wherever in its stream it
// is, and is redirected. So: tracked means left alone, and everything else is captured. The package reads sockets
// (sock_diag) and writes entries (ctnetlink); it knows no rules and keeps no state.
package conntrack
