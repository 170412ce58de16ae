package logfilter

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/interpreter"
)

// maxExpression bounds an expression, in bytes. Those that people write have some tens.
const maxExpression = 4 << 10

// Entry is what a line of the log would be about.
type Entry interface {
	// Attribute returns the value of one of Attributes: an int64, string, bool, time.Duration, time.Time or map[string]string, as CEL's
	// type of it is; nil if it is not known. It is called at most once for each place in which an expression has it.
	Attribute(name string) any
}

// headers is the type of requests' header fields, by name in lower case.
var headers = cel.MapType(cel.StringType, cel.StringType)

// attributes are those that expressions can have, by the two parts of their names. They are a part of Envoy's, with its meaning.
var attributes = map[string]map[string]*cel.Type{
	"request": {
		"path": cel.StringType, "url_path": cel.StringType, "query": cel.StringType, "host": cel.StringType, "scheme": cel.StringType,
		"method": cel.StringType, "protocol": cel.StringType, "headers": headers, "referer": cel.StringType, "useragent": cel.StringType,
		"id": cel.StringType, "time": cel.TimestampType, "duration": cel.DurationType, "size": cel.IntType,
	},
	"response":    {"code": cel.IntType, "grpc_status": cel.IntType, "size": cel.IntType, "backend_latency": cel.DurationType},
	"connection":  {"mtls": cel.BoolType, "uri_san_peer_certificate": cel.StringType},
	"source":      {"address": cel.StringType, "port": cel.IntType},
	"destination": {"address": cel.StringType, "port": cel.IntType},
	"upstream":    {"address": cel.StringType, "port": cel.IntType},
	"xds":         {"cluster_name": cel.StringType, "route_name": cel.StringType, "filter_chain_name": cel.StringType},
}

// Attributes returns the names of all attributes, sorted.
func Attributes() []string {
	var all []string
	for object, fields := range attributes {
		for field := range fields {
			all = append(all, object+"."+field)
		}
	}
	slices.Sort(all)
	return all
}

// Filter is an expression. Any number of goroutines may use it at a time.
type Filter struct {
	text    string
	program cel.Program
}

// Compile reads an expression. The error says where it is wrong, on one line.
func Compile(expression string) (*Filter, error) {
	switch {
	case strings.TrimSpace(expression) == "":
		return nil, errors.New("the expression is empty")
	case len(expression) > maxExpression:
		return nil, fmt.Errorf("the expression is longer than %d bytes", maxExpression)
	}
	env, err := environment()
	if err != nil {
		return nil, err
	}
	ast, issues := env.Compile(expression)
	if issues.Err() != nil {
		return nil, explain(issues)
	}
	if ast.OutputType() != cel.BoolType && ast.OutputType() != cel.DynType {
		return nil, fmt.Errorf("the expression is of type %s, and must be true or false", ast.OutputType())
	}
	program, err := env.Program(ast, cel.EvalOptions(cel.OptOptimize))
	if err != nil {
		return nil, fmt.Errorf("the expression cannot be evaluated: %w", err)
	}
	return &Filter{expression, program}, nil
}

// environment is the language. Of macros it has only has(): without those that go through lists an evaluation takes no longer than the
// expression and what it looks at are.
func environment() (*cel.Env, error) {
	registry, err := types.NewRegistry()
	if err != nil {
		return nil, fmt.Errorf("make the language of expressions: %w", err)
	}
	options := []cel.EnvOption{cel.ClearMacros(), cel.Macros(cel.HasMacro), cel.CustomTypeProvider(provider{registry})}
	for _, object := range slices.Sorted(maps.Keys(attributes)) {
		options = append(options, cel.Variable(object, cel.ObjectType(typeOf(object))))
	}
	env, err := cel.NewEnv(options...)
	if err != nil {
		return nil, fmt.Errorf("make the language of expressions: %w", err)
	}
	return env, nil
}

// explain makes one line of what is wrong.
func explain(issues *cel.Issues) error {
	var all []string
	for _, e := range issues.Errors() {
		all = append(all, fmt.Sprintf("%d:%d: %s", e.Location.Line(), e.Location.Column()+1, strings.TrimSuffix(strings.Join(strings.Fields(e.Message), " "), " (in container '')")))
	}
	return errors.New(strings.Join(all, "; "))
}

// String is the expression.
func (f *Filter) String() string { return f.text }

// Matches tells whether the expression is true. One that has no value, since it needs an attribute that is not known, is not; as
// in Envoy.
func (f *Filter) Matches(e Entry) bool {
	value, _, err := f.program.Eval(activation{e})
	return err == nil && value == types.True
}

// activation has the one entry for every variable: the attributes of it know their names.
type activation struct{ entry Entry }

// ResolveName is of interpreter.Activation.
func (a activation) ResolveName(name string) (any, bool) {
	_, known := attributes[name]
	return a.entry, known
}

// Parent is of interpreter.Activation.
func (activation) Parent() interpreter.Activation { return nil }

// typeOf is what the type of a variable is called.
func typeOf(object string) string { return "logged." + object }

// provider has the types of variables beside the language's own.
type provider struct{ *types.Registry }

// FindStructType is of types.Provider.
func (p provider) FindStructType(name string) (*types.Type, bool) {
	if object, ours := strings.CutPrefix(name, typeOf("")); ours && attributes[object] != nil {
		return types.NewTypeTypeWithParam(types.NewObjectType(name)), true
	}
	return p.Registry.FindStructType(name)
}

// FindStructFieldNames is of types.Provider.
func (p provider) FindStructFieldNames(name string) ([]string, bool) {
	if object, ours := strings.CutPrefix(name, typeOf("")); ours && attributes[object] != nil {
		return slices.Sorted(maps.Keys(attributes[object])), true
	}
	return p.Registry.FindStructFieldNames(name)
}

// FindStructFieldType is of types.Provider.
func (p provider) FindStructFieldType(name, field string) (*types.FieldType, bool) {
	object, ours := strings.CutPrefix(name, typeOf(""))
	if !ours {
		return p.Registry.FindStructFieldType(name, field)
	}
	kind := attributes[object][field]
	if kind == nil {
		return nil, false
	}
	full := object + "." + field
	return &types.FieldType{
		Type:  kind,
		IsSet: func(target any) bool { return target.(Entry).Attribute(full) != nil },
		GetFrom: func(target any) (any, error) {
			if value := target.(Entry).Attribute(full); value != nil {
				return value, nil
			}
			return nil, fmt.Errorf("no such attribute: %s", full)
		},
	}, true
}
