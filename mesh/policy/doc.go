// Package policy decides who may connect to whom. Policies are compiled once into immutable values; a decision reads
// them, does no I/O, keeps no state and never logs. What cannot be understood is never weakened: an invalid policy
// allows nothing and denies all that it selects.
package policy
