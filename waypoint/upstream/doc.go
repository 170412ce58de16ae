// Package upstream is the waypoint's way to backends: clusters at run time, the choice of an endpoint, and pools of
// connections to it, through the mesh's tunnel where the endpoint speaks it.
//
// Rules of the room: choosing costs the same however many endpoints there are, and takes no lock. An endpoint in the mesh is
// reached only by its exact identity; a connection belongs to the endpoint for which it was made, so that an address that is
// used again is not spoken to under an old name. What a backend cannot have seen may be sent elsewhere, and the error says
// so; whether to is the caller's to decide.
package upstream
