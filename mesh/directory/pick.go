package directory

import (
	"errors"
	"net/netip"
)

// Errors of Pick, wrapped; branch with errors.Is.
var (
	// ErrNoPort: the service has no such port.
	ErrNoPort = errors.New("no such port")
	// ErrNoEndpoint: no endpoint of the service is healthy, allowed by its balancing and has the port.
	ErrNoEndpoint = errors.New("no healthy endpoint")
	// ErrPassthrough: the service's clients choose the endpoint themselves; go to the address that was asked for.
	ErrPassthrough = errors.New("service passes through")
)

// PickRequest asks for an endpoint of a service.
type PickRequest struct {
	Service *Service
	// Port is the service port.
	Port uint16
	// Source is the client; its locality ranks endpoints. Nil: no endpoint is nearer than another.
	Source *Workload
	// Addr is the address that the client asked for; endpoints' addresses of its family are preferred. Zero: none.
	Addr netip.Addr
	// Exclude holds uids of workloads that were tried already.
	Exclude []string
}

// Endpoint is where to connect to.
type Endpoint struct {
	Workload *Workload
	// Service is the one that it was picked from; nil if the client asked for the workload.
	Service *Service
	// Addr is the workload's address and target port. The address is zero for a workload that has only a host name, and
	// for one of another network that is reached through its gateway.
	Addr netip.AddrPort
}

// Pick chooses an endpoint.
func (d *Directory) Pick(r PickRequest) (Endpoint, error) { panic("unwritten") }
