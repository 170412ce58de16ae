// Package handover passes sockets between processes of one node: from a node proxy to its successor, and to and from the
// node agent, which keeps them for a proxy that died. A listening socket that two processes hold is one socket with one
// queue, so nothing is lost while one takes over from the other.
//
// Rules of the room: both sides prove to be root. A socket is told by its network namespace, protocol and address, which
// the receiver reads from the kernel and never from the message alone. A peer that is a release older or newer is
// understood, and one that says nothing costs no more than a time-out.
package handover
