// Package config turns the Envoy resources that a control plane serves (Listener, RouteConfiguration, Cluster,
// ClusterLoadAssignment) into an immutable Snapshot, which the connection path reads through an atomic pointer.
//
// Rules of the room. A resource that cannot be honoured is rejected by name, with the path of each field that is in the way,
// and what was in force under its name stays in force; it never holds back another. So it is with single filter chains. No field that changes what a request meets
// is ignored: all that are set are held against tables of those that are understood. What did not change is shared between
// snapshots, so that pointers tell what changed. References may dangle, and what happens then is defined at each of them.
package config
