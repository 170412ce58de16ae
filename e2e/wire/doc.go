// Package wire holds tests of what one part sends and another reads, with both in one process. The parts never import each other,
// so this is the lowest place at which they meet.
package wire
