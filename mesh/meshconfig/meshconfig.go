// Package meshconfig reads mesh settings, which have the form of Istio's MeshConfig. It is pure: text in, settings and
// what is wrong with them out. The control plane reads the settings live; the command line asks what of them is not
// supported.
package meshconfig

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
	networkingv1 "istio.io/api/networking/v1"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/mesh/identity"
)

// Settings are what ambit takes from a MeshConfig. They are immutable once parsed.
type Settings struct {
	// TrustDomain is the first part of identities that are given out.
	TrustDomain string
	// TrustDomainAliases are other trust domains whose identities count as the mesh's own.
	TrustDomainAliases []string
	// RootNamespace is where mesh-wide policy lives; "" means the control plane's own.
	RootNamespace string
	// RegistryOnly refuses connections to destinations that the mesh does not know (outboundTrafficPolicy).
	RegistryOnly bool
	// ExtensionProviders are external authorisers, tracers and the like, by name.
	ExtensionProviders []*meshv1alpha1.MeshConfig_ExtensionProvider
	// DefaultTracers are the names of those that take spans where nothing else is said.
	DefaultTracers []string
	// DefaultLoggers are the names of those that take lines of the access log where nothing else is said.
	DefaultLoggers []string
	// DefaultRetry is what routes without a retry policy of their own do; nil is Istio's default.
	DefaultRetry *networkingv1.HTTPRetry
}

// Default are the settings of a mesh that says nothing.
func Default() Settings { return Settings{TrustDomain: api.DefaultTrustDomain} }

// Parse reads the YAML or JSON of a MeshConfig. What it does not know it ignores; Unsupported lists that. An error means
// that the text must not be used at all.
func Parse(text []byte) (Settings, error) {
	object, err := yaml.YAMLToJSONStrict(text)
	if err != nil {
		return Settings{}, fmt.Errorf("parse mesh settings: %w", err)
	}
	if string(object) == "null" {
		return Default(), nil
	}
	var cfg meshv1alpha1.MeshConfig
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(object, &cfg); err != nil {
		// protojson varies its spaces, so that nobody relies on its words; people compare them all the same.
		return Settings{}, fmt.Errorf("parse mesh settings: %s", strings.ReplaceAll(err.Error(), "\u00a0", " "))
	}
	s := Default()
	if cfg.GetTrustDomain() != "" {
		s.TrustDomain = cfg.GetTrustDomain()
	}
	s.TrustDomainAliases = cfg.GetTrustDomainAliases()
	s.RootNamespace = cfg.GetRootNamespace()
	if s.RegistryOnly, err = registryOnly(object); err != nil {
		return Settings{}, err
	}
	s.ExtensionProviders = cfg.GetExtensionProviders()
	s.DefaultTracers = cfg.GetDefaultProviders().GetTracing()
	s.DefaultLoggers = cfg.GetDefaultProviders().GetAccessLogging()
	if len(s.DefaultLoggers) == 0 && slices.Contains(streams, cfg.GetAccessLogFile()) {
		s.DefaultLoggers = []string{BuiltinLogger}
	}
	s.DefaultRetry = cfg.GetDefaultHttpRetryPolicy()
	return s, s.validate()
}

// registryOnly reads the mode of outbound traffic from the text itself: the default, ALLOW_ANY, is not the type's zero value,
// and a value that is not known must not pass for one.
func registryOnly(object []byte) (bool, error) {
	type policy struct {
		Mode string `json:"mode"`
	}
	var cfg struct {
		JSON  policy `json:"outboundTrafficPolicy"`
		Proto policy `json:"outbound_traffic_policy"`
	}
	if err := json.Unmarshal(object, &cfg); err != nil {
		return false, fmt.Errorf("parse mesh settings: outboundTrafficPolicy: %w", err)
	}
	switch mode := cmp.Or(cfg.JSON.Mode, cfg.Proto.Mode); mode {
	case "", allowAny, allowAnyDynamicDNS:
		return false, nil
	case "REGISTRY_ONLY":
		return true, nil
	default:
		return false, fmt.Errorf("parse mesh settings: outboundTrafficPolicy.mode: %q is none of %s, REGISTRY_ONLY", mode, allowAny)
	}
}

// Modes of outboundTrafficPolicy that refuse nothing.
const (
	allowAny           = "ALLOW_ANY"
	allowAnyDynamicDNS = "ALLOW_ANY_DYNAMIC_DNS"
)

func (s Settings) validate() error {
	for _, td := range append([]string{s.TrustDomain}, s.TrustDomainAliases...) {
		if err := (identity.Identity{TrustDomain: td, Namespace: "n", ServiceAccount: "s"}).Validate(); err != nil {
			return fmt.Errorf("parse mesh settings: %w", err)
		}
	}
	seen := map[string]bool{}
	for _, p := range s.ExtensionProviders {
		if p.GetName() == "" {
			return errors.New("parse mesh settings: an extension provider has no name")
		}
		if seen[p.GetName()] {
			return fmt.Errorf("parse mesh settings: two extension providers are called %q", p.GetName())
		}
		seen[p.GetName()] = true
	}
	return nil
}

// supported are the fields of MeshConfig that ambit acts upon.
var supported = []string{
	"trustDomain", "trustDomainAliases", "rootNamespace", "outboundTrafficPolicy", "extensionProviders", "defaultProviders", "defaultHttpRetryPolicy",
	"accessLogFile",
}

// Unsupported is a field of mesh settings that ambit does nothing with.
type Unsupported struct {
	// Path is the field's name, with the names above it.
	Path string
	// Reason says why in a few words.
	Reason string
}

// FindUnsupported names, sorted, the fields of a MeshConfig (YAML or JSON) that are set and that ambit does not act upon.
func FindUnsupported(text []byte) ([]Unsupported, error) {
	var fields map[string]any
	if err := yaml.UnmarshalStrict(text, &fields); err != nil {
		return nil, fmt.Errorf("parse mesh settings: %w", err)
	}
	known := (&meshv1alpha1.MeshConfig{}).ProtoReflect().Descriptor().Fields()
	var out []Unsupported
	for name, value := range fields {
		field := known.ByJSONName(name)
		if field == nil {
			field = known.ByName(protoreflect.Name(name))
		}
		switch {
		case field == nil:
			out = append(out, Unsupported{name, "MeshConfig has no such field"})
		case !slices.Contains(supported, field.JSONName()):
			out = append(out, Unsupported{name, "not supported by ambit; ignored"})
		case field.JSONName() == "defaultProviders":
			providers, _ := value.(map[string]any)
			for kind := range providers {
				if kind != "tracing" && kind != "accessLogging" {
					out = append(out, Unsupported{name + "." + kind, "not supported by ambit; ignored"})
				}
			}
		case field.JSONName() == "accessLogFile":
			if file, _ := value.(string); file != "" && !slices.Contains(streams, file) {
				out = append(out, Unsupported{name, "waypoints write to no file; ignored. /dev/stdout is the pod's log"})
			}
		case field.JSONName() == "outboundTrafficPolicy":
			if m, ok := value.(map[string]any); ok && m["mode"] == allowAnyDynamicDNS {
				out = append(out, Unsupported{name + ".mode", allowAnyDynamicDNS + " is not supported; treated as " + allowAny})
			}
		}
	}
	slices.SortFunc(out, func(a, b Unsupported) int { return strings.Compare(a.Path, b.Path) })
	return out, nil
}
