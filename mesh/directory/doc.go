// Package directory knows the workloads, services and policies of the mesh, as the control plane tells them. Every value
// that it hands out is immutable and shared; look-ups take no lock; an update touches what changed and nothing else, so
// that its cost does not depend on the size of the mesh. What it is not told but learns from the proxy is how busy that
// keeps endpoints, which of them fail, and which one a client has.
package directory
