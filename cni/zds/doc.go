// Package zds is the agent's side of the protocol by which node proxies learn which pods they serve (package
// api/zds): a server on a SOCK_SEQPACKET Unix socket. Several proxies may be connected, as during an upgrade: a new pod
// is given to the newest, a removal is told to all, and when the newest goes away the next one is told what it missed.
// The package knows no Kubernetes and no rules.
package zds
