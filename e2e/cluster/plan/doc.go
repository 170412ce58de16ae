// Package plan says what a cluster consists of: addresses, machines, their services with all flags, and every
// configuration file and manifest. It is pure: the same options give the same plan, and it touches nothing.
package plan
