// Package dns answers the name queries of one pod: what the mesh knows it answers itself, the rest it forwards to where
// the pod sent it. It knows names, messages and sockets that it is given, and nothing of connections.
//
// Rules of the room: in doubt a query is forwarded, so that a pod never resolves less than it would without the mesh. An
// upstream's answer is passed on as it came. Everything is bounded: queries at once, connections, time, and what is
// remembered. Nothing is read, and no goroutine begun, for a query for which there is no room.
package dns
