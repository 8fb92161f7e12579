//! Whatever its buffers and uniforms hold, no kernel in any variant indexes beyond an array in workgroup, private or function memory, a vector or a
//! matrix: such indices need no check at run time. Buffers (storage, uniform) are out of scope: the device keeps accesses to them inside.
//!
//! Proven   for every `Access` and `AccessIndex` to anything but a buffer, the largest index is below the length; for `coopLoad` and `coopStore`, the last
//!          element of the last row is inside, too
//! Method   abstract interpretation of naga's IR with all overrides constant. Values of type u32 and bool are terms: equal operations on equal operands are
//!          one term, what is loaded from memory a new one. A term has a range (lowest, highest, step) by interval arithmetic; what might leave
//!          0 .. 2^32 - 1 may be anything. A branch narrows the ranges of the terms in its condition, and so of all that is made of them, before or after.
//!          Functions are followed anew from each call. At the head of a loop a variable that it assigns has a range that holds what enters and, as is
//!          checked, what comes back; failing that, it may be anything
//! Assumed  pipelines have the constants of tests/common/variants.rs, attention also those of any head up to 1024 channels, and workgroups the size that the kernel declares; naga translates what it shows here;
//!          strides of `coopLoad` and `coopStore` count elements of the array, as SPIR-V has it

#[path = "common/modules.rs"]
mod modules;
#[path = "common/variants.rs"]
#[allow(dead_code)]
mod variants;

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::mem::{replace, take};

use infgen::gpu::{DeviceProfile, KernelFamily, KernelPlan, MatrixUnits, PROVEN_HEADS, Variant};
use infgen::kernels;
use modules::{parse, resolved};
use naga::proc::{IndexableLength, IndexableLengthError};
use naga::valid::{FunctionInfo, ModuleInfo};
use naga::{AddressSpace, BinaryOperator as Op, Binding, Block, BuiltIn, CooperativeData, Expression, Function, Handle, Literal};
use naga::{LocalVariable, MathFunction, Module, Scalar, ScalarKind, Statement, TypeInner, UnaryOperator};
use variants::{constants, storages};

const MAX: u64 = u32::MAX as u64;

/// The values lo, lo + step .. hi; a step of 0 where that is one value.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Range {
    lo: u64,
    hi: u64,
    step: u64,
}

const ANY: Range = Range { lo: 0, hi: MAX, step: 1 };
const BOOL: Range = Range { lo: 0, hi: 1, step: 1 };

impl Range {
    /// `hi` need not lie on a step; anything, where it is no u32.
    fn new(lo: u64, hi: u64, step: u64) -> Range {
        if hi > MAX {
            return ANY;
        }
        let hi = hi - (hi - lo) % step.max(1);
        Range { lo, hi, step: if lo == hi { 0 } else { step } }
    }

    fn one(value: u64) -> Range {
        Range { lo: value, hi: value, step: 0 }
    }

    fn value(self) -> Option<u64> {
        (self.step == 0).then_some(self.lo)
    }

    /// Of all values of both.
    fn hull(self, other: Range) -> Range {
        let step = gcd(gcd(self.step, other.step), self.lo.abs_diff(other.lo));
        Range { lo: self.lo.min(other.lo), hi: self.hi.max(other.hi), step }
    }

    /// Of the values in both, and perhaps more: those of the range with the larger steps that are between the ends of the other.
    fn meet(self, other: Range) -> Option<Range> {
        let coarse = self.step == 0 || (other.step != 0 && self.step >= other.step);
        let (grid, ends) = if coarse { (self, other) } else { (other, self) };
        let step = grid.step.max(1);
        let lo = grid.lo + ends.lo.saturating_sub(grid.lo).div_ceil(step) * step;
        let hi = grid.hi.min(ends.hi);
        (lo <= hi).then(|| Range::new(lo, hi, step))
    }

    fn holds(self, other: Range) -> bool {
        self.hull(other) == self
    }

    fn binary(op: Op, a: Range, b: Range) -> Range {
        // All of as many bits as the larger has.
        let bits = (a.hi.max(b.hi) + 1).next_power_of_two() - 1;
        match (op, a.value(), b.value()) {
            (Op::ExclusiveOr, Some(a), Some(b)) => Range::one(a ^ b),
            (Op::InclusiveOr, Some(a), Some(b)) => Range::one(a | b),
            (Op::And, Some(a), Some(b)) => Range::one(a & b),
            (Op::Add, ..) => Range::new(a.lo + b.lo, a.hi + b.hi, gcd(a.step, b.step)),
            (Op::Subtract, ..) if a.lo >= b.hi => Range::new(a.lo - b.hi, a.hi - b.lo, gcd(a.step, b.step)),
            (Op::Multiply, ..) => Range::new(a.lo * b.lo, a.hi * b.hi, gcd(gcd(a.lo * b.step, b.lo * a.step), a.step * b.step)),
            (Op::Divide, _, Some(c)) if c > 0 && a.step.is_multiple_of(c) => Range::new(a.lo / c, a.hi / c, a.step / c),
            (Op::Divide, ..) if b.lo > 0 => Range::new(a.lo / b.hi, a.hi / b.lo, 1),
            (Op::Modulo, _, Some(c)) if c > 0 && a.lo / c == a.hi / c => Range::new(a.lo % c, a.hi % c, a.step),
            (Op::Modulo, _, Some(c)) if c > 0 => Range::new(a.lo % gcd(a.step, c), c - 1, gcd(a.step, c)),
            (Op::Modulo, ..) if b.lo > 0 => Range::new(0, a.hi.min(b.hi - 1), 1),
            (Op::And, ..) => Range::new(0, a.hi.min(b.hi), 1),
            (Op::InclusiveOr, ..) => Range::new(a.lo.max(b.lo), bits, 1),
            (Op::ExclusiveOr, ..) => Range::new(0, bits, 1),
            (Op::ShiftLeft, _, Some(n)) if n < 32 => Range::new(a.lo << n, a.hi << n, a.step << n),
            (Op::ShiftRight, ..) if b.hi < 32 => Range::new(a.lo >> b.hi, a.hi >> b.lo, 1),
            (Op::Less, ..) if a.hi < b.lo || a.lo >= b.hi => Range::one((a.hi < b.lo) as u64),
            (Op::Equal, Some(a), Some(b)) => Range::one((a == b) as u64),
            (Op::Equal, ..) if a.meet(b).is_none() => Range::one(0),
            (Op::Less | Op::Equal, ..) => BOOL,
            _ => ANY,
        }
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

type Id = usize;

/// The value of an expression where it was last evaluated.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Term {
    /// A constant under number 0, an unknown value under one of its own.
    Value(usize, Range),
    /// Of comparisons only `Less` and `Equal`; `!x` is `x ^ 1`.
    Binary(Op, Id, Id),
    Min(Id, Id),
    Max(Id, Id),
    Select(Id, Id, Id),
}

#[derive(Default)]
struct Terms {
    all: Vec<Term>,
    ids: HashMap<Term, Id>,
}

impl Terms {
    fn id(&mut self, term: Term) -> Id {
        *self.ids.entry(term).or_insert_with(|| {
            self.all.push(term);
            self.all.len() - 1
        })
    }

    fn constant(&mut self, value: u64) -> Id {
        self.id(Term::Value(0, Range::one(value)))
    }

    fn unknown(&mut self, range: Range) -> Id {
        self.id(Term::Value(self.all.len() + 1, range))
    }

    fn not(&mut self, a: Id) -> Id {
        let one = self.constant(1);
        self.id(Term::Binary(Op::ExclusiveOr, a, one))
    }

    fn binary(&mut self, op: Op, a: Id, b: Id) -> Id {
        let (op, a, b, opposite) = match op {
            Op::Greater => (Op::Less, b, a, false),
            Op::LessEqual => (Op::Less, b, a, true),
            Op::GreaterEqual => (Op::Less, a, b, true),
            Op::NotEqual => (Op::Equal, a, b, true),
            _ => (op, a, b, false),
        };
        let id = self.id(Term::Binary(op, a, b));
        if opposite { self.not(id) } else { id }
    }
}

/// A variable of the function at a depth of calls; its result where there is no handle.
type Variable = (usize, Option<Handle<LocalVariable>>);

/// What is known at a place of the program.
#[derive(Clone, Default)]
struct State {
    variables: HashMap<Variable, Id>,
    /// Of terms that branches have narrowed.
    narrowed: HashMap<Id, Range>,
    /// Of terms asked for since the last was.
    ranges: RefCell<HashMap<Id, Range>>,
}

impl State {
    fn range(&self, terms: &Terms, id: Id) -> Range {
        if let Some(&range) = self.ranges.borrow().get(&id) {
            return range;
        }
        let of = |id| self.range(terms, id);
        let computed = match terms.all[id] {
            Term::Value(_, range) => range,
            Term::Binary(op, a, b) => match (op, terms.all[b]) {
                // a - a % c is a / c * c.
                (Op::Subtract, Term::Binary(Op::Modulo, x, c)) if x == a && of(c).lo > 0 => {
                    Range::binary(Op::Multiply, Range::binary(Op::Divide, of(a), of(c)), of(c))
                }
                _ => Range::binary(op, of(a), of(b)),
            },
            Term::Min(a, b) => of(a).hull(of(b)).meet(Range::new(0, of(a).hi.min(of(b).hi), 1)).expect("one of both"),
            Term::Max(a, b) => of(a).hull(of(b)).meet(Range::new(of(a).lo.max(of(b).lo), MAX, 1)).expect("one of both"),
            Term::Select(c, a, b) => match of(c).value() {
                Some(0) => of(b),
                Some(_) => of(a),
                None => of(a).hull(of(b)),
            },
        };
        let range = self.narrowed.get(&id).map_or(computed, |&narrowed| narrowed.meet(computed).unwrap_or(narrowed));
        self.ranges.borrow_mut().insert(id, range);
        range
    }

    /// The term lies in `to`; false where it cannot.
    fn narrow(&mut self, terms: &Terms, id: Id, to: Range) -> bool {
        let range = self.range(terms, id);
        let Some(narrowed) = range.meet(to) else { return false };
        if narrowed == range {
            return true;
        }
        self.narrowed.insert(id, narrowed);
        self.ranges.borrow_mut().clear();
        let Term::Binary(op, a, b) = terms.all[id] else { return true };
        let (of_a, of_b) = (self.range(terms, a), self.range(terms, b));
        match (op, narrowed.value(), of_b.value()) {
            (Op::Add, ..) if of_a.hi + of_b.hi <= MAX => {
                let rest = |other: Range| Range::new(narrowed.lo.saturating_sub(other.hi), narrowed.hi.saturating_sub(other.lo), 1);
                self.narrow(terms, a, rest(of_b)) && self.narrow(terms, b, rest(of_a))
            }
            (Op::Modulo, Some(rest), Some(c)) if rest < c => self.narrow(terms, a, Range::new(rest, MAX, c)),
            _ => true,
        }
    }

    /// The condition is as `truth` says; false where it cannot be.
    fn assume(&mut self, terms: &Terms, id: Id, truth: bool) -> bool {
        if !self.narrow(terms, id, Range::one(truth as u64)) {
            return false;
        }
        let (Term::Binary(_, a, b) | Term::Select(_, a, b)) = terms.all[id] else { return true };
        let (of_a, of_b) = (self.range(terms, a), self.range(terms, b));
        let opposite = Range::one(!truth as u64);
        match (terms.all[id], truth) {
            (Term::Binary(Op::Less, ..), true) => {
                let (below, above) = (Range::new(0, of_b.hi.saturating_sub(1), 1), Range::new(MAX.min(of_a.lo + 1), MAX, 1));
                self.narrow(terms, a, below) && self.narrow(terms, b, above)
            }
            (Term::Binary(Op::Less, ..), false) => {
                self.narrow(terms, a, Range::new(of_b.lo, MAX, 1)) && self.narrow(terms, b, Range::new(0, of_a.hi, 1))
            }
            (Term::Binary(Op::Equal, ..), true) => self.narrow(terms, a, of_b) && self.narrow(terms, b, of_a),
            (Term::Binary(Op::ExclusiveOr, ..), _) if of_b == Range::one(1) => self.assume(terms, a, !truth),
            (Term::Binary(Op::And, ..), true) | (Term::Binary(Op::InclusiveOr, ..), false) => {
                self.assume(terms, a, truth) && self.assume(terms, b, truth)
            }
            // && and || are branches that assign a variable: c ? a : false and c ? true : b.
            (Term::Select(c, ..), _) if of_b == opposite => self.assume(terms, c, true) && self.assume(terms, a, truth),
            (Term::Select(c, ..), _) if of_a == opposite => self.assume(terms, c, false) && self.assume(terms, b, truth),
            _ => true,
        }
    }

    fn assuming(&self, terms: &Terms, id: Id, truth: bool) -> Option<State> {
        let mut state = self.clone();
        state.assume(terms, id, truth).then_some(state)
    }
}

/// A call of a function.
struct Frame<'a> {
    function: &'a Function,
    info: &'a FunctionInfo,
    depth: usize,
    arguments: Vec<Option<Id>>,
    values: HashMap<Handle<Expression>, Id>,
    breaks: Vec<State>,
    continues: Vec<State>,
    returns: Vec<State>,
}

impl<'a> Frame<'a> {
    fn new(function: &'a Function, info: &'a FunctionInfo, depth: usize, arguments: Vec<Option<Id>>) -> Self {
        let (values, breaks, continues, returns) = Default::default();
        Frame { function, info, depth, arguments, values, breaks, continues, returns }
    }
}

struct Analysis<'a> {
    module: &'a Module,
    info: &'a ModuleInfo,
    source: &'a str,
    terms: Terms,
    proven: usize,
    faults: Vec<String>,
}

impl<'a> Analysis<'a> {
    /// The state behind a call; its result is the variable without a handle.
    fn call(&mut self, mut f: Frame<'a>, mut state: State) -> Option<State> {
        for (handle, local) in f.function.local_variables.iter() {
            if let Some(range) = tracked(&self.module.types[local.ty].inner) {
                let init = local.init.and_then(|init| self.term(&f, init));
                state.variables.insert((f.depth, Some(handle)), init.unwrap_or_else(|| self.terms.unknown(range)));
            }
        }
        let body = &f.function.body;
        let end = self.block(&mut f, body, state);
        f.returns.extend(end);
        self.join_all(f.returns)
    }

    fn range(&self, f: &Frame, handle: Handle<Expression>) -> Option<Range> {
        tracked(f.info[handle].ty.inner_with(&self.module.types))
    }

    /// None where the expression is neither u32 nor bool.
    fn term(&mut self, f: &Frame, handle: Handle<Expression>) -> Option<Id> {
        let range = self.range(f, handle)?;
        let expression = match f.function.expressions[handle] {
            Expression::Constant(c) => &self.module.global_expressions[self.module.constants[c].init],
            ref expression => expression,
        };
        let known = match *expression {
            Expression::Literal(Literal::U32(n)) => Some(self.terms.constant(n as u64)),
            Expression::Literal(Literal::Bool(truth)) => Some(self.terms.constant(truth as u64)),
            Expression::ZeroValue(_) => Some(self.terms.constant(0)),
            Expression::FunctionArgument(i) => f.arguments[i as usize],
            _ => f.values.get(&handle).copied(),
        };
        Some(known.unwrap_or_else(|| self.terms.unknown(range)))
    }

    fn evaluate(&mut self, f: &mut Frame, handle: Handle<Expression>, state: &State) {
        let known = match f.function.expressions[handle] {
            Expression::Load { pointer } => match f.function.expressions[pointer] {
                Expression::LocalVariable(v) => state.variables.get(&(f.depth, Some(v))).copied(),
                _ => None,
            },
            Expression::Binary { op, left, right } => {
                self.term(f, left).zip(self.term(f, right)).map(|(left, right)| self.terms.binary(op, left, right))
            }
            Expression::Unary { op: UnaryOperator::LogicalNot, expr } => self.term(f, expr).map(|a| self.terms.not(a)),
            Expression::Select { condition, accept, reject } => {
                let arms = self.term(f, accept).zip(self.term(f, reject));
                self.term(f, condition).zip(arms).map(|(c, (a, b))| self.terms.id(Term::Select(c, a, b)))
            }
            Expression::Math { fun: fun @ (MathFunction::Min | MathFunction::Max), arg, arg1: Some(arg1), .. } => self
                .term(f, arg)
                .zip(self.term(f, arg1))
                .map(|(a, b)| self.terms.id(if fun == MathFunction::Min { Term::Min(a, b) } else { Term::Max(a, b) })),
            Expression::As { expr, kind: ScalarKind::Uint, convert: Some(4) } => self.term(f, expr),
            Expression::CooperativeLoad { columns, rows, ref data, .. } => {
                self.check_matrix(f, handle, [rows as u64, columns as u64], data, state);
                None
            }
            _ => None,
        };
        if let Some((base, index)) = self.element(f, handle, state) {
            self.check(f, handle, base, index, 0);
        }
        if let Some(range) = self.range(f, handle) {
            let id = known.unwrap_or_else(|| self.terms.unknown(range));
            f.values.insert(handle, id);
        }
    }

    /// What is indexed, and with what, if `handle` is such an access.
    fn element(&mut self, f: &Frame, handle: Handle<Expression>, state: &State) -> Option<(Handle<Expression>, Range)> {
        match f.function.expressions[handle] {
            Expression::Access { base, index } => Some((base, self.term(f, index).map_or(ANY, |index| state.range(&self.terms, index)))),
            Expression::AccessIndex { base, index } => Some((base, Range::one(index as u64))),
            _ => None,
        }
    }

    /// `beyond` elements behind the index are accessed too.
    fn check(&mut self, f: &Frame, at: Handle<Expression>, base: Handle<Expression>, index: Range, beyond: u64) {
        let inner = f.info[base].ty.inner_with(&self.module.types);
        let buffer = matches!(inner.pointer_space(), Some(AddressSpace::Storage { .. } | AddressSpace::Uniform));
        let length = inner.indexable_length_resolved(self.module);
        if matches!(length, Err(IndexableLengthError::TypeNotIndexable)) || (buffer && beyond == 0) {
            return;
        }
        if matches!(length, Ok(IndexableLength::Known(n)) if index.hi + beyond < n as u64) {
            self.proven += 1;
            return;
        }
        let name = match f.function.expressions[base] {
            Expression::GlobalVariable(v) => self.module.global_variables[v].name.as_deref(),
            Expression::LocalVariable(v) => f.function.local_variables[v].name.as_deref(),
            _ => None,
        };
        let line = f.function.expressions.get_span(at).location(self.source).line_number as usize;
        let line = self.source.lines().nth(line.saturating_sub(1)).unwrap_or_default().trim();
        let (name, last) = (name.unwrap_or("a value"), index.hi + beyond);
        self.faults.push(format!("{name}: index {} .. {last} of {length:?} in `{line}`", index.lo));
    }

    /// `at` accesses `rows` and `columns` from `data` on.
    fn check_matrix(&mut self, f: &Frame, at: Handle<Expression>, [rows, columns]: [u64; 2], data: &CooperativeData, state: &State) {
        let stride = self.term(f, data.stride).map_or(ANY, |stride| state.range(&self.terms, stride));
        let element = f.info[data.pointer].ty.inner_with(&self.module.types).pointer_base_type().expect("a pointer");
        let lanes = match *element.inner_with(&self.module.types) {
            TypeInner::Vector { size, .. } => size as u64,
            _ => 1,
        };
        let (runs, run) = if data.row_major { (rows, columns) } else { (columns, rows) };
        let beyond = (runs - 1) * stride.hi + run.div_ceil(lanes) - 1;
        let (base, index) = self.element(f, data.pointer, state).expect("a matrix begins at an element");
        self.check(f, at, base, index, beyond);
    }

    /// The state after the block; None where its end is not reached.
    fn block(&mut self, f: &mut Frame<'a>, block: &'a Block, mut state: State) -> Option<State> {
        for statement in block {
            state = self.statement(f, statement, state)?;
        }
        Some(state)
    }

    fn statement(&mut self, f: &mut Frame<'a>, statement: &'a Statement, mut state: State) -> Option<State> {
        match *statement {
            Statement::Emit(ref range) => range.clone().for_each(|handle| self.evaluate(f, handle, &state)),
            Statement::Block(ref block) => return self.block(f, block, state),
            Statement::If { condition, ref accept, ref reject } => {
                let condition = self.term(f, condition).expect("a bool");
                let accepted = state.assuming(&self.terms, condition, true).and_then(|state| self.block(f, accept, state));
                let rejected = state.assuming(&self.terms, condition, false).and_then(|state| self.block(f, reject, state));
                return self.join(Some(condition), accepted, rejected);
            }
            Statement::Switch { ref cases, .. } => {
                let outer = take(&mut f.breaks);
                for case in cases {
                    assert!(!case.fall_through || case.body.is_empty());
                    let end = self.block(f, &case.body, state.clone());
                    f.breaks.extend(end);
                }
                let ends = replace(&mut f.breaks, outer);
                return self.join_all(ends);
            }
            Statement::Loop { ref body, ref continuing, break_if: None } => return self.repeat(f, body, continuing, state),
            Statement::Loop { .. } => panic!("a loop that ends with a condition"),
            Statement::Break | Statement::Continue | Statement::Return { .. } => {
                if let Statement::Return { value: Some(value) } = *statement {
                    self.term(f, value).map(|value| state.variables.insert((f.depth, None), value));
                }
                match statement {
                    Statement::Break => f.breaks.push(state),
                    Statement::Continue => f.continues.push(state),
                    _ => f.returns.push(state),
                }
                return None;
            }
            Statement::Store { pointer, value } => {
                if let (Expression::LocalVariable(v), Some(value)) = (&f.function.expressions[pointer], self.term(f, value)) {
                    state.variables.insert((f.depth, Some(*v)), value);
                }
            }
            Statement::Call { function, ref arguments, result } => {
                let callee = &self.module.functions[function];
                let pointers = callee.arguments.iter().any(|a| self.module.types[a.ty].inner.pointer_space().is_some());
                assert!(!pointers, "{:?} takes a pointer: what it points to is not followed", callee.name);
                let arguments = arguments.iter().map(|&a| self.term(f, a)).collect();
                state = self.call(Frame::new(callee, &self.info[function], f.depth + 1, arguments), state)?;
                if let (Some(result), Some(&value)) = (result, state.variables.get(&(f.depth + 1, None))) {
                    f.values.insert(result, value);
                }
                state.variables.retain(|&(depth, _), _| depth <= f.depth);
            }
            Statement::CooperativeStore { target, ref data } => {
                let TypeInner::CooperativeMatrix { columns, rows, .. } = *f.info[target].ty.inner_with(&self.module.types) else {
                    panic!("a matrix is stored")
                };
                self.check_matrix(f, data.pointer, [rows as u64, columns as u64], data, &state);
            }
            _ => {}
        }
        Some(state)
    }

    fn repeat(&mut self, f: &mut Frame<'a>, body: &'a Block, continuing: &'a Block, entry: State) -> Option<State> {
        let outer = (take(&mut f.breaks), take(&mut f.continues));
        let before = (self.proven, self.faults.len());
        let mut assigned = vec![];
        stores(f.function, body, &mut assigned);
        stores(f.function, continuing, &mut assigned);
        // How a counter steps shows where it is stepped alone.
        let stepped = self.block(f, continuing, entry.clone());
        let mut heads = vec![];
        for v in assigned {
            let variable = (f.depth, Some(v));
            let Some(any) = tracked(&self.module.types[f.function.local_variables[v].ty].inner) else { continue };
            let range = |state: &State| state.range(&self.terms, state.variables[&variable]);
            let (first, second) = (range(&entry), stepped.as_ref().map_or(any, range));
            let open = Range::new(first.lo.min(second.lo), any.hi, first.hull(second).step);
            heads.push((variable, any, if first == second { any } else { open }));
        }
        loop {
            (f.breaks, f.continues) = Default::default();
            self.proven = before.0;
            self.faults.truncate(before.1);
            let mut head = entry.clone();
            for &(variable, _, range) in &heads {
                head.variables.insert(variable, self.terms.unknown(range));
            }
            let end = self.block(f, body, head);
            f.continues.extend(end);
            let ends = take(&mut f.continues);
            let back = self.join_all(ends).and_then(|state| self.block(f, continuing, state));
            let mut held = true;
            for (variable, any, range) in &mut heads {
                if back.as_ref().is_some_and(|back| !range.holds(back.range(&self.terms, back.variables[variable]))) {
                    (*range, held) = (*any, false);
                }
            }
            if held {
                break;
            }
        }
        let ends = take(&mut f.breaks);
        (f.breaks, f.continues) = outer;
        self.join_all(ends)
    }

    fn join_all(&mut self, states: Vec<State>) -> Option<State> {
        states.into_iter().fold(None, |all, state| self.join(None, all, Some(state)))
    }

    /// Either of two states, `a` where `condition` holds.
    fn join(&mut self, condition: Option<Id>, a: Option<State>, b: Option<State>) -> Option<State> {
        let (a, b) = match (a, b) {
            (Some(a), Some(b)) => (a, b),
            (a, b) => return a.or(b),
        };
        let mut joined = State::default();
        for (&id, &range) in a.narrowed.iter().filter(|(id, _)| b.narrowed.contains_key(id)) {
            joined.narrowed.insert(id, range.hull(b.range(&self.terms, id)));
        }
        for (&variable, &ours) in &a.variables {
            let Some(&theirs) = b.variables.get(&variable) else { continue };
            let mut id = ours;
            if ours != theirs {
                let range = a.range(&self.terms, ours).hull(b.range(&self.terms, theirs));
                id = match condition {
                    Some(condition) => self.terms.id(Term::Select(condition, ours, theirs)),
                    None => self.terms.unknown(range),
                };
                joined.narrowed.insert(id, range);
            }
            joined.variables.insert(variable, id);
        }
        Some(joined)
    }
}

/// What a value of the type can be, where the analysis follows it.
fn tracked(inner: &TypeInner) -> Option<Range> {
    match *inner {
        TypeInner::Scalar(Scalar::U32) => Some(ANY),
        TypeInner::Scalar(Scalar::BOOL) => Some(BOOL),
        _ => None,
    }
}

/// Adds the variables that the block assigns.
fn stores(function: &Function, block: &Block, found: &mut Vec<Handle<LocalVariable>>) {
    for statement in block {
        match statement {
            Statement::Store { pointer, .. } => match function.expressions[*pointer] {
                Expression::LocalVariable(v) if !found.contains(&v) => found.push(v),
                _ => {}
            },
            Statement::Block(block) => stores(function, block, found),
            Statement::If { accept: a, reject: b, .. } | Statement::Loop { body: a, continuing: b, .. } => {
                stores(function, a, found);
                stores(function, b, found);
            }
            Statement::Switch { cases, .. } => cases.iter().for_each(|case| stores(function, &case.body, found)),
            _ => {}
        }
    }
}

/// How many accesses are inside, and those that might not be.
fn check(parsed: &(Module, ModuleInfo), source: &str, consts: &[(&'static str, u32)]) -> (usize, Vec<String>) {
    let (module, info) = resolved(parsed, consts, "constants");
    let entry = &module.entry_points[0];
    let mut analysis = Analysis { module: &module, info: &info, source, terms: Terms::default(), proven: 0, faults: vec![] };
    let invocations = Range::new(0, entry.workgroup_size.iter().product::<u32>() as u64 - 1, 1);
    let arguments = entry.function.arguments.iter().map(|argument| {
        let index = argument.binding == Some(Binding::BuiltIn(BuiltIn::LocalInvocationIndex));
        let range = tracked(&module.types[argument.ty].inner)?;
        Some(analysis.terms.unknown(if index { invocations } else { range }))
    });
    let arguments = arguments.collect();
    analysis.call(Frame::new(&entry.function, info.get_entry_point(0), 0, arguments), State::default());
    (analysis.proven, analysis.faults)
}

/// What the kernels of attention, by their names, get for each head up to the widest that runs without checks.
fn heads() -> HashMap<&'static str, BTreeSet<Vec<(&'static str, u32)>>> {
    let profiles = MatrixUnits::KNOWN.map(|matrix| DeviceProfile {
        software: false,
        kernels: KernelPlan::uniform(KernelFamily::Tile),
        native_f16: true,
        matrix: Some(matrix),
        broadcast: false,
        max_binding: 1 << 30,
        max_buffer: 1 << 30,
        fill: 256,
        max_workgroup_storage: 128 << 10,
        max_invocations: 1024,
        offset_alignment: 256,
    });
    let of_one = |d4| profiles.iter().flat_map(move |profile| kernels::attention::flash_kernels(profile, d4));
    let mut all = HashMap::<_, BTreeSet<_>>::new();
    for (kernel, consts) in (1..=PROVEN_HEADS as usize).flat_map(of_one) {
        all.entry(kernel.name).or_default().insert(consts);
    }
    all
}

#[test]
fn no_index_leaves_its_array() {
    let (mut variants, mut proven, mut faults) = (0, 0, vec![]);
    let heads = heads();
    for kernel in kernels::ALL {
        for [x, w, y] in storages(kernel) {
            // Constants change little of a source, often nothing.
            let mut parsed = HashMap::new();
            for consts in constants(kernel).into_iter().chain(heads.get(kernel.name).into_iter().flatten().cloned()) {
                let variant = Variant { x, w, y, consts };
                let source = kernel.source(&variant);
                let module = parsed.entry(source.clone()).or_insert_with(|| parse(&source, kernel.name));
                let (inside, outside) = check(module, &source, &variant.consts);
                let label = format!("{} {x:?} {w:?} {y:?} {:?}", kernel.name, variant.consts);
                faults.extend(outside.into_iter().map(|fault| format!("{label}: {fault}")));
                variants += 1;
                proven += inside;
            }
        }
    }
    println!("{proven} accesses in {variants} variants");
    assert!(faults.is_empty(), "{} accesses may lie outside:\n{}", faults.len(), faults.join("\n"));
    assert!(proven > 10_000);
}

/// Each fault is seen in a variant of the kernel.
#[test]
fn planted_faults_are_seen() {
    for (name, from, to) in [
        ("layer_norm", "part: array<f32, 64>", "part: array<f32, 63>"),
        ("attention", "j < 8u", "j < 9u"),
        ("attention", "lane - s + t", "lane + t"),
        ("attention_tile", "i < T;", "i < T + 1u;"),
        ("attention_tile", "peak[i]", "peak[i + 1u]"),
        ("linear_matrix", "if i < SIDE * SIDE / 4u && r < p.rows", "if i < SIDE * SIDE / 4u || r < p.rows"),
        ("guidance_rescale", "if lane < half", "if lane <= half"),
        ("conv2d_winograd_tile", "if lane < SLOTS", "if lane < SLOTS + 1u"),
        ("conv2d_winograd_tile", "if o >= 256u { continue; }", "if o > 512u { continue; }"),
        ("conv2d_winograd_tile+statistics", "array<vec4<f32>, 64u * ALL>", "array<vec4<f32>, 64u * ALL - 1u>"),
        ("conv2d_3x3_matrix+statistics", "if i < 16u * wide", "if i <= 16u * wide"),
        ("linear_matrix", "&xs[xi + 3u * SIDE * XP], XP", "&xs[xi + 3u * SIDE * XP], XP + 1u"),
        ("linear_matrix", "coopStoreT(c, &cs[region]", "coopStoreT(c, &cs[region + 1u]"),
        ("attention_matrix", "if lane % parts == 0u {\n        total", "if lane % parts == 1u {\n        total"),
        ("attention_matrix", "&stage[at + 3u * SIDE * QP], QP", "&stage[at + 3u * SIDE * QP], QP + 1u"),
    ] {
        let kernel = kernels::ALL.iter().find(|kernel| kernel.name == name).unwrap();
        let [x, w, y] = storages(kernel)[0];
        let seen = constants(kernel).into_iter().any(|consts| {
            let variant = Variant { x, w, y, consts };
            let source = kernel.source(&variant);
            assert!(source.contains(from), "{name}: {from}");
            let faulty = source.replacen(from, to, 1);
            !check(&parse(&faulty, name), &faulty, &variant.consts).1.is_empty()
        });
        assert!(seen, "{name}: not seen: {to}");
    }
}

#[test]
fn ranges_hold_what_operations_give() {
    use Op::{Add, And, Divide, Equal, ExclusiveOr, InclusiveOr, Less, Modulo, Multiply, ShiftLeft, ShiftRight, Subtract};
    let result = |op: Op, a: u32, b: u32| match op {
        Add => Some(a.wrapping_add(b)),
        Subtract => Some(a.wrapping_sub(b)),
        Multiply => Some(a.wrapping_mul(b)),
        Divide => a.checked_div(b),
        Modulo => a.checked_rem(b),
        And => Some(a & b),
        InclusiveOr => Some(a | b),
        ExclusiveOr => Some(a ^ b),
        ShiftLeft => a.checked_shl(b),
        ShiftRight => a.checked_shr(b),
        Less => Some((a < b) as u32),
        _ => Some((a == b) as u32),
    };
    let operations = [Add, Subtract, Multiply, Divide, Modulo, And, InclusiveOr, ExclusiveOr, ShiftLeft, ShiftRight, Less, Equal];
    let ends = [0, 1, 2, 3, 7, 8, 18, 31, 96, 255, 65_536, MAX - 8, MAX - 1, MAX];
    let mut ranges = vec![];
    for (n, &lo) in ends.iter().enumerate() {
        ranges.extend(ends[n..].iter().flat_map(|&hi| [1, 2, 3, 8, 32].map(|step| Range::new(lo, hi, step))));
    }
    let values = |r: Range| (0..4).flat_map(move |n| [r.lo + n * r.step, r.hi - n * r.step]).filter(move |&v| r.holds(Range::one(v)));
    for &a in &ranges {
        for &b in &ranges {
            for (x, y) in values(a).flat_map(|x| values(b).map(move |y| (x, y))) {
                for op in operations {
                    let result = result(op, x as u32, y as u32);
                    assert!(result.is_none_or(|n| Range::binary(op, a, b).holds(Range::one(n as u64))), "{x} {op:?} {y}");
                }
                assert!(a.hull(b).holds(Range::one(x)) && (x != y || a.meet(b).is_some_and(|both| both.holds(Range::one(x)))), "{x} {y}");
            }
        }
    }
}
