// Package ambit is the root of a sidecar-less service mesh for Kubernetes. It has no code: ARCHITECTURE.md draws the
// rooms, and the tests beside this file hold the rules of the house.
package ambit
