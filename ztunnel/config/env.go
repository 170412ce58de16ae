package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// env reads typed values out of an environment and gathers what is wrong.
type env struct {
	vars  map[string]string
	asked map[string]bool // names that were looked for: the settings that there are
	file  fileConfig
	errs  []error
	notes []string
}

// fileConfig is the part of Istio's ProxyConfig that a node proxy looks at.
type fileConfig struct {
	DiscoveryAddress string            `yaml:"discoveryAddress"`
	ProxyAdminPort   int               `yaml:"proxyAdminPort"`
	StatsPort        int               `yaml:"statsPort"`
	Concurrency      *int              `yaml:"concurrency"`
	ProxyMetadata    map[string]string `yaml:"proxyMetadata"`
}

// newEnv splits the environment and reads the two YAML sources: the mesh file's defaultConfig, and over it PROXY_CONFIG. As
// in Istio, proxyMetadata stands for environment variables that are not set.
func newEnv(environ []string) (*env, error) {
	e := &env{vars: map[string]string{}, asked: map[string]bool{}}
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		e.vars[name] = value
	}
	path := e.text("AMBIT_MESH_FILE", DefaultMeshFile)
	raw, err := readMeshFile(path)
	if err != nil {
		return nil, fmt.Errorf("settings: %w", err)
	}
	mesh := struct {
		DefaultConfig *fileConfig `yaml:"defaultConfig"`
	}{DefaultConfig: &e.file}
	if err := yaml.Unmarshal(raw, &mesh); err != nil {
		return nil, fmt.Errorf("settings: %s: %w", path, err)
	}
	if err := yaml.Unmarshal([]byte(e.get("PROXY_CONFIG")), &e.file); err != nil {
		return nil, fmt.Errorf("settings: PROXY_CONFIG: %w", err)
	}
	for name, value := range e.file.ProxyMetadata {
		if _, set := e.vars[name]; !set {
			e.vars[name] = value
		}
	}
	if _, set := e.vars["ZTUNNEL_WORKER_THREADS"]; !set && e.file.Concurrency != nil {
		e.vars["ZTUNNEL_WORKER_THREADS"] = strconv.Itoa(*e.file.Concurrency)
	}
	return e, nil
}

func (e *env) fail(name, format string, args ...any) {
	e.errs = append(e.errs, errors.New(name+": "+fmt.Sprintf(format, args...)))
}

func (e *env) note(format string, args ...any) {
	e.notes = append(e.notes, fmt.Sprintf(format, args...))
}

// get returns a variable as it is.
func (e *env) get(name string) string {
	e.asked[name] = true
	return e.vars[name]
}

// noteUnknown says which variables look like settings of ours and are none, to be called when all have been read. Those that
// Kubernetes makes of the names of services are passed over.
func (e *env) noteUnknown() {
	for _, name := range slices.Sorted(maps.Keys(e.vars)) {
		if strings.HasPrefix(name, "AMBIT_") && !e.asked[name] && !strings.Contains(name, "_SERVICE_") && !strings.Contains(name, "_PORT") {
			e.note("%s is no setting of this proxy and has no effect", name)
		}
	}
}

// text returns a variable; empty is as if it were not set.
func (e *env) text(name, fallback string) string {
	if v := e.get(name); v != "" {
		return v
	}
	return fallback
}

// path returns a path; "off" is none.
func (e *env) path(name, fallback string) string {
	if v := e.text(name, fallback); v != "off" {
		return v
	}
	return ""
}

func (e *env) flag(name string, fallback bool) bool {
	switch v := strings.ToLower(e.get(name)); v {
	case "":
		return fallback
	case "true", "1", "yes", "on":
		return true
	case "false", "0", "no", "off":
		return false
	default:
		e.fail(name, "%q is neither true nor false", e.vars[name])
		return fallback
	}
}

func (e *env) choice(name, fallback string, allowed ...string) string {
	v := strings.ToLower(e.text(name, fallback))
	if !slices.Contains(allowed, v) {
		e.fail(name, "%q is none of %s", e.vars[name], strings.Join(allowed, ", "))
		return fallback
	}
	return v
}

func (e *env) integer(name string, fallback, lowest, highest int) int {
	v := e.get(name)
	if v == "" {
		return fallback
	}
	n, err := strconv.Atoi(v)
	if err != nil {
		e.fail(name, "%q is not a whole number", v)
		return fallback
	}
	if n < lowest || n > highest {
		e.fail(name, "%d is not between %d and %d", n, lowest, highest)
		return fallback
	}
	return n
}

func (e *env) duration(name string, fallback, lowest time.Duration) time.Duration {
	v := e.get(name)
	if v == "" {
		return fallback
	}
	d, err := time.ParseDuration(v)
	if err != nil {
		e.fail(name, "%q is not a duration such as 90s or 5m", v)
		return fallback
	}
	if d < lowest {
		e.fail(name, "%v is less than %v", d, lowest)
		return fallback
	}
	return d
}

// share reads a number from 0 to 1.
func (e *env) share(name string, fallback float64) float64 {
	v := e.get(name)
	if v == "" {
		return fallback
	}
	f, err := strconv.ParseFloat(v, 64)
	if err != nil || !(f >= 0 && f <= 1) {
		e.fail(name, "%q is not a number from 0 to 1", v)
		return fallback
	}
	return f
}

// port checks a port of fileConfig.
func (e *env) port(name string, value, fallback int) uint16 {
	if value == 0 {
		value = fallback
	}
	if value < 1 || value > 65535 {
		e.fail(name, "%d is not a port", value)
		return 0
	}
	return uint16(value)
}

// metadata gathers ISTIO_META_* (texts) and ISTIO_METAJSON_* (JSON) for the control plane.
func (e *env) metadata() map[string]any {
	m := map[string]any{}
	for name, value := range e.vars {
		if key, ok := strings.CutPrefix(name, "ISTIO_META_"); ok {
			m[key] = value
		}
		if key, ok := strings.CutPrefix(name, "ISTIO_METAJSON_"); ok {
			var decoded any
			if err := json.Unmarshal([]byte(value), &decoded); err != nil {
				e.fail(name, "not JSON: %v", err)
				continue
			}
			m[key] = decoded
		}
	}
	return m
}
