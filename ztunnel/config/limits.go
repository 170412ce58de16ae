package config

import (
	"math"
	"time"

	"github.com/ambit-mesh/ambit/mesh/h2"
	"github.com/ambit-mesh/ambit/mesh/hbone"
	"github.com/ambit-mesh/ambit/mesh/share"
)

// Limits bound what one pod may take of its node's proxy. In each of them zero means no bound.
type Limits struct {
	// Connections is how many connections a pod may have, in both directions together, tunnelled or not.
	Connections int
	// Tunnels is how many tunnel connections a pod may have, in each direction: one carries many connections.
	Tunnels int
	// Handshakes is how many TLS handshakes of a pod may be under way, in each direction.
	Handshakes int
	// Buffered is how many bytes of payload may wait for a pod's applications and peers.
	Buffered int64
	// Share is what a pod may use of the processors while others do not get theirs in time, in processors. One or more turns
	// holding back off.
	Share float64
}

// Timeouts bound the steps and the silence of a connection. Zero means none.
type Timeouts struct {
	// Connect bounds a TCP connect, Handshake a TLS handshake, Settings the wait for the peer's SETTINGS, and Response the
	// wait for its answer to CONNECT.
	Connect, Handshake, Settings, Response time.Duration
	// Idle ends a connection that has carried nothing for so long.
	Idle time.Duration
	// HalfClose ends a connection of which one direction has ended and the other carries nothing for so long; HalfCloseProbe
	// is how long such a one is silent until its peer is probed.
	HalfClose, HalfCloseProbe time.Duration
	// TunnelIdle ends a tunnel connection of a client that has had no stream for so long.
	TunnelIdle time.Duration
}

// Defaults of Limits and Timeouts where no other room has one.
const (
	DefaultConnections = 1 << 16
	// DefaultTunnels is one to each pod of a large mesh, and their memory is bearable.
	DefaultTunnels  = 1 << 14
	DefaultBuffered = 128 << 20
	// DefaultTunnelIdle is above the time for which clients keep their unused connections.
	DefaultTunnelIdle = 15 * time.Minute
)

func (e *env) limits() Limits {
	return Limits{
		Connections: e.integer("AMBIT_POD_MAX_CONNECTIONS", DefaultConnections, 0, math.MaxInt32),
		Tunnels:     e.integer("AMBIT_POD_MAX_TUNNELS", DefaultTunnels, 0, math.MaxInt32),
		Handshakes:  e.integer("AMBIT_POD_MAX_HANDSHAKES", hbone.DefaultMaxHandshakes, 1, math.MaxInt32),
		Buffered:    int64(e.integer("AMBIT_POD_MAX_BUFFERED", DefaultBuffered, 0, math.MaxInt)),
		Share:       float64(e.integer("AMBIT_POD_MIN_SHARE_PERCENT", int(share.DefaultLeast*100), 1, 100)) / 100,
	}
}

func (e *env) timeouts() Timeouts {
	const least = 100 * time.Millisecond
	return Timeouts{
		Connect:        e.duration("AMBIT_CONNECT_TIMEOUT", hbone.DefaultConnectTimeout, least),
		Handshake:      e.duration("AMBIT_HANDSHAKE_TIMEOUT", hbone.DefaultHandshakeTimeout, least),
		Settings:       e.duration("AMBIT_SETTINGS_TIMEOUT", h2.DefaultSettingsTimeout, least),
		Response:       e.duration("AMBIT_RESPONSE_TIMEOUT", hbone.DefaultResponseTimeout, least),
		Idle:           e.duration("AMBIT_IDLE_TIMEOUT", 0, 0),
		HalfClose:      e.duration("AMBIT_HALF_CLOSE_TIMEOUT", hbone.DefaultHalfCloseTimeout, 0),
		HalfCloseProbe: e.duration("AMBIT_HALF_CLOSE_PROBE", hbone.DefaultHalfCloseProbe, 0),
		TunnelIdle:     e.duration("AMBIT_TUNNEL_IDLE_TIMEOUT", DefaultTunnelIdle, 0),
	}
}
