package identity

import "google.golang.org/grpc"

// ChannelConfig describes a gRPC channel to the control plane, for discovery or for the CA.
type ChannelConfig struct {
	// Address is https://host:port or host:port, or http://host:port for plaintext, which must be a loopback address.
	Address string
	// RootCA verifies the server: the path of a PEM file, which is read anew for each handshake, a PEM text itself, or
	// "SYSTEM" for the system's roots.
	RootCA string
	// ServerName is verified instead of Address's host, if not empty.
	ServerName string
	// TokenFile holds a bearer token, read anew for each call. Empty: no token is sent.
	TokenFile string
	// Headers are sent with each call, e.g. clusterid.
	Headers map[string]string
}

// NewChannel makes a channel, which connects at its first call. The caller closes it.
func NewChannel(cfg ChannelConfig) (*grpc.ClientConn, error) { panic("unwritten") }
