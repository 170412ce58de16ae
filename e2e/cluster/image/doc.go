// Package image assembles container images without a builder: static programs over nothing, and where a program needs
// userland, Debian's own programs with the libraries that they name. An image is a value; the same inputs give the same
// bytes.
package image
