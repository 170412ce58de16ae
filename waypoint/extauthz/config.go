package extauthz

import (
	"slices"
	"time"

	"github.com/ambit-mesh/ambit/mesh/policy"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

// Config says whom to ask, and how. It is immutable.
type Config struct {
	// Name is for people.
	Name string
	// Cluster is where requests for it go; Authority what it is called in them.
	Cluster, Authority string
	// HTTP are the settings for one that is asked by HTTP; nil: by gRPC.
	HTTP *HTTP
	// Timeout bounds a question with its answer; 0 is no bound.
	Timeout time.Duration
	// FailOpen serves requests for which there is no answer. StatusOnError is what clients get for them otherwise.
	FailOpen      bool
	StatusOnError int
	// Body says how much of requests' bodies is shown; nil: nothing.
	Body *Body
	// Claims: those of the request's token are shown. It has no meaning for HTTP.
	Claims bool
	// Reroute: routes are chosen by the header as the answer has changed it, not as the client sent it.
	Reroute bool
	// Headers are the fields that are shown. Nil: all of them by gRPC, those that are shown in any case by HTTP.
	Headers Names
}

// HTTP are settings for those who are asked by HTTP.
type HTTP struct {
	// PathPrefix comes before the path of the request.
	PathPrefix string
	// Add are fields that are sent in the place of the client's of that name.
	Add message.Fields
	// ToBackend are fields of an answer that allows that the backend gets in the place of the client's.
	ToBackend Names
	// ToClient are fields of an answer that allows that the client gets in the place of the backend's. ToDenied are those of an answer
	// that denies; nil: all.
	ToClient, ToDenied Names
}

// Body says what of bodies is shown.
type Body struct {
	// Max is how many bytes at most. A request with more is refused with 413, unless Partial.
	Max     int
	Partial bool
	// Raw: as bytes, where it would be text. It has no meaning for HTTP.
	Raw bool
}

// Names are tests of the names of fields, of which one must hold.
type Names []policy.Text

func (n Names) has(name string) bool {
	return slices.ContainsFunc(n, func(t policy.Text) bool { return t.Matches(name) })
}
