// Package xtables reads and changes chains of our own in iptables, of either kind (nft or legacy), in the network
// namespace of the calling thread. It says nothing about what is in the chains, and never touches one that it was not
// told to.
package xtables
