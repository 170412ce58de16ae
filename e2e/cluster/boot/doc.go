// Package boot is what the first process of a machine does: it makes the machine's own view of the file system, starts
// its services, restarts those that end, and reaps. It runs as process 1 of its own PID namespace, so that its end is
// the end of everything in the machine, which makes killing it a power cut.
//
// A Spec says all of it. Boot reads nothing else and never talks to the program that started it.
package boot
